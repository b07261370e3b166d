package headrace;

import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.functions.TableSemantics;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.inference.CallContext;
import org.apache.flink.table.types.logical.utils.LogicalTypeChecks;
import org.apache.flink.types.Row;

/**
 * Lets some records of a partition and key pass, which reach it in the partition's order.
 *
 * <p>A record passes with all of its columns, but that its row time is called `rowtime` behind it.
 */
public abstract class Passing extends Keyed {
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

    final void pass(Row record) {
        collect(Row.project(record, passing));
    }

    @Override
    final DataType given(CallContext call) {
        List<DataTypes.Field> fields = DataType.getFields(records(call).dataType());
        return DataTypes.ROW(
                IntStream.of(passing(records(call))).mapToObj(fields::get).collect(Collectors.toList()));
    }

    /** Flink puts the columns of the partition before the others, and the row time behind them. */
    private static int[] passing(TableSemantics records) {
        List<DataType> columns = DataType.getFieldDataTypes(records.dataType());
        return IntStream.range(0, columns.size())
                .filter(column -> IntStream.of(records.partitionByColumns()).noneMatch(key -> key == column))
                .filter(column -> !LogicalTypeChecks.isTimeAttribute(columns.get(column).getLogicalType()))
                .toArray();
    }
}
