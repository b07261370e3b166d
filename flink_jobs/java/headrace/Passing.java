package headrace;

import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.functions.TableSemantics;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.inference.CallContext;
import org.apache.flink.types.Row;

/**
 * Lets some records of a partition and key pass, which reach it in the partition's order.
 *
 * <p>A record passes with all of its columns, its row time among them.
 */
public abstract class Passing extends Keyed {
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

    final void pass(Row record) {
        collect(Row.project(record, passing));
    }

    @Override
    final DataType given(CallContext call) {
        List<DataTypes.Field> fields = DataType.getFields(records(call).dataType());
        return DataTypes.ROW(
                IntStream.of(passing(records(call))).mapToObj(fields::get).collect(Collectors.toList()));
    }

    /** Flink puts the columns of the partition before the others. */
    private static int[] passing(TableSemantics records) {
        return IntStream.range(0, DataType.getFieldCount(records.dataType()))
                .filter(column -> IntStream.of(records.partitionByColumns()).noneMatch(key -> key == column))
                .toArray();
    }
}
