package headrace;

import java.time.Duration;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.api.TableException;
import org.apache.flink.table.catalog.DataTypeFactory;
import org.apache.flink.table.functions.ProcessTableFunction;
import org.apache.flink.table.functions.SpecializedFunction;
import org.apache.flink.table.functions.TableSemantics;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.inference.CallContext;
import org.apache.flink.table.types.inference.StateTypeStrategy;
import org.apache.flink.table.types.inference.StaticArgument;
import org.apache.flink.table.types.inference.StaticArgumentTrait;
import org.apache.flink.table.types.inference.TypeInference;
import org.apache.flink.table.types.inference.TypeStrategies;
import org.apache.flink.types.Row;

/**
 * Lets some records of a partition and key pass, which reach it in the partition's order. It forgets a key by a timer, when the
 * watermark proves that nothing it holds of the key can matter any more.
 *
 * <p>A record passes with all of its columns, its row time among them. There is no `on_time`: with it Flink 2.2 drops what lies behind
 * the watermark before any function sees it. Timers ask for the watermark, since 2.2 takes no new one at or behind it.
 */
public abstract class Passing extends ProcessTableFunction<Row> implements SpecializedFunction {
    static final String TIME_MS = "$time_ms";
    static final String REACHED = "$reached";

    private final int[] passing;

    /** Of a function that is only declared. */
    Passing() {
        passing = new int[0];
    }

    /** Of a call of it in a query. */
    Passing(CallContext call) {
        passing = passing(records(call));
    }

    /** What stands behind the table: names and types. */
    abstract List<StaticArgument> arguments();

    /** What is kept of a key, by name. */
    abstract LinkedHashMap<String, StateTypeStrategy> state();

    final void pass(Row record) {
        collect(Row.project(record, passing));
    }

    @Override
    public final TypeInference getTypeInference(DataTypeFactory types) {
        StaticArgument[] all = new StaticArgument[arguments().size() + 1];
        all[0] = StaticArgument.table(
                "records",
                Row.class,
                false,
                EnumSet.of(StaticArgumentTrait.SET_SEMANTIC_TABLE));
        for (int index = 1; index < all.length; index++) {
            all[index] = arguments().get(index - 1);
        }
        return TypeInference.newBuilder()
                .staticArguments(all)
                .stateTypeStrategies(state())
                .outputTypeStrategy(call -> {
                    List<DataTypes.Field> fields = DataType.getFields(records(call).dataType());
                    return Optional.of(DataTypes.ROW(IntStream.of(passing(records(call)))
                                    .mapToObj(fields::get)
                                    .collect(Collectors.toList()))
                            .notNull());
                })
                .build();
    }

    static TableSemantics records(CallContext call) {
        return call.getTableSemantics(0).orElseThrow(() -> new TableException("records is no table"));
    }

    /** The position of a column of the records. */
    static int column(CallContext call, String name) {
        return DataType.getFieldNames(records(call).dataType()).indexOf(name);
    }

    static StaticArgument constant(String name) {
        return StaticArgument.scalar(name, DataTypes.BIGINT().notNull(), false);
    }

    /** Without a time to live of zero Flink gives it one without end, and looks for what has outlived it at every access. */
    static StateTypeStrategy kept(DataType type) {
        return StateTypeStrategy.of(TypeStrategies.explicit(type), Duration.ZERO);
    }

    static long number(CallContext call, int argument) {
        return call.getArgumentValue(argument, Long.class).orElseThrow(() -> new TableException("is no constant"));
    }

    /** Flink puts the columns of the partition before the others. */
    private static int[] passing(TableSemantics records) {
        return IntStream.range(0, DataType.getFieldCount(records.dataType()))
                .filter(column -> IntStream.of(records.partitionByColumns()).noneMatch(key -> key == column))
                .toArray();
    }
}
