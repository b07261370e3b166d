package headrace;

import java.time.Duration;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
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
import org.apache.flink.table.types.inference.TypeStrategy;
import org.apache.flink.types.Row;

/**
 * Keeps something of each key of its records. It forgets a key by a timer, when the watermark proves that nothing it holds of the key
 * can matter any more.
 *
 * <p>There is no `on_time`: with it Flink 2.2 drops what lies behind the watermark before any function sees it. A timer asks for the
 * watermark, not for its own time: nor does 2.2 take a timer there.
 */
public abstract class Keyed extends ProcessTableFunction<Row> implements SpecializedFunction {
    static final String TIME_MS = "$time_ms";

    /** What stands behind the table: names and types. */
    abstract List<StaticArgument> arguments();

    /** What is kept of a key, by name. */
    abstract LinkedHashMap<String, StateTypeStrategy> state();

    /** What it gives, behind the columns of the key. */
    abstract DataType given(CallContext call);

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
                .outputTypeStrategy(call -> Optional.of(given(call).notNull()))
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

    static StateTypeStrategy kept(DataType type) {
        return kept(TypeStrategies.explicit(type));
    }

    /** Without a time to live of zero Flink gives it one without end, and looks for what has outlived it at every access. */
    static StateTypeStrategy kept(TypeStrategy type) {
        return StateTypeStrategy.of(type, Duration.ZERO);
    }

    static long number(CallContext call, int argument) {
        return call.getArgumentValue(argument, Long.class).orElseThrow(() -> new TableException("is no constant"));
    }
}
